"""Statistics without files: AUROC and its variance, intervals, bootstrap, folds, multiplicity."""
