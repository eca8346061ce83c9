"""Trial records as they lie on disk, made by hand."""


def trial(arm: str, seed: int, scores: dict[str, list[float]], *, mode: str = "frozen", **parameters) -> dict:
    """`scores`: modality -> mIoU of each repeat."""
    downstream = [
        {"modality": modality, "mode": mode, "repeat": i, "miou": value, "head": "pspnet", "head_depth": 3,
         "scheme": "dfc2020", "protocol": "holdout"}
        for modality, values in scores.items() for i, value in enumerate(values)
    ]  # fmt: skip
    return {"key": f"{arm}-{seed}", "arm": arm, "seed": seed, "parameters": parameters, "downstream": downstream,
            "config": {}, "status": "done"}  # fmt: skip
