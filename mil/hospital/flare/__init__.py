"""NVIDIA FLARE carries the messages: mutual TLS, outbound-only sites, roles, site-side refusal of foreign code, audit logs.

Nothing of the science is here. FLARE's aggregators, job status and file formats are not used: the bytes it carries are
`mil.hospital.payload`'s, the state is `mil.hospital.stages`'s, and the record is our own ledger.
"""
