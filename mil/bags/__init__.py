"""Features and labels -> the bag table of an endpoint."""
