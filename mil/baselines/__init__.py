"""What a slide model has to beat, on the very same folds: clinical columns, an annotation, colour, bag size, the site."""

from mil.baselines.inputs import BASELINES, run_baselines
from mil.baselines.protocol import Folded, run_protocol
from mil.baselines.write import write_baselines

__all__ = ["BASELINES", "Folded", "run_baselines", "run_protocol", "write_baselines"]
