"""What is predicted: one object per kind of endpoint, with targets, loss, measures and words."""

from mil.endpoints import binary, multiclass, regression, survival  # noqa: F401  importing them fills ENDPOINTS
from mil.endpoints.endpoint import ENDPOINTS, Endpoint
from mil.specs.endpoints import EndpointSpec

__all__ = ["ENDPOINTS", "Endpoint", "build_endpoint"]


def build_endpoint(spec: EndpointSpec | None = None) -> Endpoint:
    """The endpoint of `spec`; of two classes where none is given."""
    return ENDPOINTS[(spec or EndpointSpec()).kind](spec or EndpointSpec())
