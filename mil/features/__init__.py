"""tiles -> features: every tile of a slide as an encoder's vector, one checksummed file a slide."""
