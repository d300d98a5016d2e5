"""synthetic"""

from mil.synthetic.cohort import make_cohort

__all__ = ["make_cohort"]
