"""The smallest run that goes through every room: 32-pixel scenes, a network of a few thousand weights."""

TINY = {
    "data": {"augment": {"crop": None}, "reader": {"kind": "direct"}, "lanes": 4},
    "model": {"encoder": "tu-test_resnet", "decoder_channels": [16, 16, 8, 8, 8]},
    "optim": {"lr": 2e-3, "batch_size": 8, "epochs": 3},
    "transfer": {
        "modes": ["frozen"],
        "repeats": 1,
        "epochs": 2,
        "lr": 2e-3,
        "batch_size": 8,
        "augment": {"crop": None},
        "panels": 2,
    },
    "probe": {"every": 1, "steps": 5, "patches": 16},
    "sweep": {"seeds": 1},
    "scaling": {"num_workers": 1, "use_gpu": False, "threads": 1},
}
