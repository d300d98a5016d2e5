"""H-optimus-0, H-optimus-1 and H0-mini of Bioptimus."""

from mil.encoders.entry import RGB, Entry, enter
from mil.encoders.state import load_timm
from mil.encoders.vit import SWIGLU, vit
from mil.encoders.weights import HubFile

MEAN: RGB = (0.707223, 0.578729, 0.703617)  # of H&E at Bioptimus, on the model cards
STD: RGB = (0.211883, 0.230117, 0.177517)

for name, repository, revision, terms in (
    ("h_optimus_0", "H-optimus-0", "b145cc1e6c6b30d3251aa8b1f844e6974188a743", "Apache-2.0"),
    ("h_optimus_1", "H-optimus-1", "3592cb220dec7a150c5d7813fb56e68bd57473b9", "CC-BY-NC-ND-4.0"),
):
    enter(
        Entry(
            name=name,
            summary=f"{repository}: ViT-g/14 with 4 registers",
            make=vit("vit_giant_patch14_reg4_dinov2", "class", img_size=224),
            width=1536,
            input_px=224,
            mean=MEAN,
            std=STD,
            mpp=0.5,
            interpolation="bicubic",
            pooling="class token",
            parameters=1_134_774_272,
            published=1.13e9,
            source=HubFile(f"bioptimus/{repository}", "pytorch_model.bin", gated=True, revision=revision),
            load=load_timm,
            licence="Apache-2.0 (timm)",
            weights_licence=terms,
            reference=f"https://huggingface.co/bioptimus/{repository}",
        )
    )
enter(
    Entry(
        name="h0_mini",
        summary="H0-mini: ViT-B/14 distilled from H-optimus-0",
        make=vit("vit_base_patch14_reg4_dinov2", "class+mean", img_size=224, mlp_ratio=5.33334, **SWIGLU),
        width=1536,
        input_px=224,
        mean=MEAN,
        std=STD,
        mpp=0.5,
        interpolation="bicubic",
        pooling="class token and mean of the patch tokens",
        parameters=85_739_520,
        published=85.7e6,
        source=HubFile("bioptimus/H0-mini", "pytorch_model.bin", gated=True),
        load=load_timm,
        licence="Apache-2.0 (timm)",
        weights_licence="CC-BY-NC-ND-4.0",
        reference="Filiot et al. 2025, https://doi.org/10.48550/arXiv.2501.16239",
    )
)
