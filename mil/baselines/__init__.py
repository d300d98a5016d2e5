"""What a slide model has to beat, on the very same folds: clinical columns, an annotation, colour, bag size, the site."""
