"""Which encoder: does what selection gains, and what masked image modelling gives, depend on the family of the network?

    python -m cromss.sweep encoder --data STORE --downstream STORE --out DIR

A ResNet, a ConvNeXt, a hierarchical transformer (MiT) and a plain ViT with its simple feature pyramid, none of them pretrained
on anything else. `MIM` is the masked-image-modelling pretraining that the paper's outlook asks for; to go on with labels from
one of its encoders: `--set pretraining.kind=pretrain --set pretraining.warm_start.s2=TRIAL_FOLDER`.
Cost: 4 encoders x 4 arms x seeds trials, 12 x seeds of them pretrainings. A step of four 64-pixel pairs on one CPU core:
resnet18 0.8 s, ConvNeXt 0.3 s, MiT 0.2 s, ViT 0.2 s (preset `demo`, both modalities; MIM as much as midF).
Answer: not asked on real data yet.
"""

from cromss.trials.space import grid

# All stages, and a head that needs no map at stride 2: transformers have none.
BASE = {
    "model": {"depth": 5, "decoder_channels": [128, 64, 32, 16, 16]},
    "transfer": {"head": {"kind": "fpn", "head_depth": 5, "channels": 64}},
}


def space() -> dict:
    return {
        "model": {"encoder": grid("resnet18", "tu-convnext_atto", "mit_b0", "tu-vit_tiny_patch16_224")},
        "arm": grid("random", "MIM", "midF", "CromSS-midF"),
    }
