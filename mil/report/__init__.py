"""Results -> the report: an HTML file that opens without a network, checklists, model cards, tables, a slide viewer."""
