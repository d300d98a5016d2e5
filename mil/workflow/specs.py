"""Settings -> the part of them that decides what a stage writes."""

import json

from mil.config import Config
from mil.specs.slides import SlidesSpec


def slides_of(spec: SlidesSpec, site: str | None = None) -> SlidesSpec:
    """What decides whether a slide of `site` can be used: without the sheets, the roles and the other sites' features."""
    features = {site: spec.features[site]} if site in spec.features else {}
    return spec.model_copy(update={"sheet": "", "patients": None, "roles": {}, "features": features})


def encoder_json(config: Config, name: str) -> str:
    """An encoder's settings without the batch size, which changes no number."""
    return json.dumps(config.encoders[name].model_dump(mode="json", exclude={"batch_size"}), sort_keys=True)
