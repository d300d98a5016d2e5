"""Virchow and Virchow2 of Paige."""

from mil.encoders.entry import IMAGENET_MEAN, IMAGENET_STD, Entry, enter
from mil.encoders.state import load_timm
from mil.encoders.vit import SWIGLU, vit
from mil.encoders.weights import HubFile

for name, repository, registers, parameters, mpp, terms, reference, revision, sha256 in (
    (
        "virchow",
        "Virchow",
        0,
        631_229_184,
        0.5,
        "Apache-2.0",
        "Vorontsov et al. 2024, https://doi.org/10.1038/s41591-024-03141-0",
        "19eebc84ae33e79f1b2d866e6ff90ae50e522f9a",
        "",
    ),
    (
        "virchow2",
        "Virchow2",
        4,
        631_239_424,
        None,  # trained at 2, 1, 0.5 and 0.25 microns
        "CC-BY-NC-ND-4.0",
        "Zimmermann et al. 2024, https://doi.org/10.48550/arXiv.2408.00738",
        "3158645804b69e3f3bc4439d4116edddf0840a72",
        "14244fbaa5409452f6a6ae01b5d2dc452f2399e2210e696d0f7ef04bb4838666",
    ),
):
    enter(
        Entry(
            name=name,
            summary=f"{repository}: ViT-H/14" + (f" with {registers} registers" if registers else ""),
            make=vit(
                "vit_huge_patch14_224",
                "class+mean",
                init_values=1e-5,
                mlp_ratio=5.3375,
                global_pool="",
                reg_tokens=registers,
                **SWIGLU,
            ),
            width=2560,
            input_px=224,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            mpp=mpp,
            interpolation="bicubic",
            pooling="class token and mean of the patch tokens",
            parameters=parameters,
            published=631.2e6,
            source=HubFile(f"paige-ai/{repository}", "pytorch_model.bin", gated=True, revision=revision, sha256=sha256),
            load=load_timm,
            licence="Apache-2.0 (timm)",
            weights_licence=terms,
            reference=reference,
        )
    )
