"""What was published for the two experiments."""

from typing import Any

# What was published for the two experiments, as fractions and nats, keyed by (matcher, correction).
REFERENCE: dict[str, dict[str, Any]] = {
    "simplenet_mnist": {
        "source": "pygmtools, model-fusion example (SimpleNet pair of its examples/data)",
        "dataset": "mnist",
        "model": {"name": "simplenet", "width": 1.0, "norm": None},
        "alphas": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        "curves": {
            ("graph_reference", "none"): {
                "test_accuracy": (0.8418, 0.8512, 0.8521, 0.8252, 0.7111, 0.5374)
                + (0.6326, 0.7851, 0.8281, 0.8397, 0.8381)
            },
            ("none", "none"): {
                "test_accuracy": (0.8418, 0.8401, 0.8191, 0.7467, 0.6039, 0.4716)
                + (0.5534, 0.7286, 0.7964, 0.8256, 0.8381)
            },
        },
    },
    "vgg11_cifar10": {
        "source": "REPAIR (arXiv 2211.08403), notebook Train-and-Permute-CIFAR10-VGG11-BatchNorm, 100 epochs",
        "dataset": "cifar10",
        "model": {"name": "vgg11", "width": 2.0, "norm": "batch"},
        "alphas": (0.0, 0.25, 0.5, 0.75, 1.0),
        "curves": {
            ("none", "none"): {
                "train_accuracy": (0.9977, 0.3267, 0.1000, 0.3081, 0.9980),
                "train_loss": (0.009, 1.894, 2.448, 1.820, 0.008),
                "test_accuracy": (0.9172, 0.3153, 0.1000, 0.2976, 0.9220),
                "test_loss": (0.295, 1.922, 2.448, 1.860, 0.301),
            },
            ("activation", "none"): {
                "train_accuracy": (0.9977, 0.8900, 0.5993, 0.8887, 0.9980),
                "train_loss": (0.009, 0.319, 1.187, 0.323, 0.008),
                "test_accuracy": (0.9172, 0.8258, 0.5838, 0.8278, 0.9220),
                "test_loss": (0.295, 0.521, 1.280, 0.531, 0.301),
            },
            ("activation", "bn_reset"): {
                "train_accuracy": (0.9979, 0.9940, 0.9792, 0.9935, 0.9981),
                "train_loss": (0.009, 0.021, 0.060, 0.021, 0.008),
                "test_accuracy": (0.9173, 0.9164, 0.9074, 0.9174, 0.9221),
                "test_loss": (0.295, 0.296, 0.331, 0.301, 0.301),
            },
        },
    },
}
