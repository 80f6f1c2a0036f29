"""Published procedures, written independently of lib: what tests compare with and bench measures against."""

import copy

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn


def layer_by_layer(model_a, model_b, batches):
    """The published procedure, written independently: for each convolution in turn run both networks up to its ReLU,
    correlate over N·H·W with per-batch standard deviations, assign, and permute B before going on."""
    model_b = copy.deepcopy(model_b)
    layers = list(model_b.features)
    perms = {}
    for position, layer in enumerate(layers):
        if not isinstance(layer, nn.Conv2d):
            continue
        mean_a = mean_b = std_a = std_b = outer = 0
        for x in batches:
            flat = []
            for model in (model_a, model_b):
                with torch.no_grad():
                    out = model.features[: position + 3](x)
                flat.append(out.permute(0, 2, 3, 1).reshape(-1, out.shape[1]).double())
            p, q = flat
            mean_a, mean_b = mean_a + p.mean(0) / len(batches), mean_b + q.mean(0) / len(batches)
            std_a, std_b = std_a + p.std(0) / len(batches), std_b + q.std(0) / len(batches)
            outer = outer + p.T @ q / len(p) / len(batches)
        correlation = (outer - torch.outer(mean_a, mean_b)) / (torch.outer(std_a, std_b) + 1e-4)
        perm = torch.from_numpy(linear_sum_assignment(correlation.numpy(), maximize=True)[1])
        perms[f"features.{position}"] = perm
        norm = layers[position + 1]
        for tensor in (layer.weight, layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data = tensor.data[perm]
        following = next((m for m in layers[position + 1 :] if isinstance(m, nn.Conv2d)), model_b.classifier)
        following.weight.data = following.weight.data[:, perm]
    return perms
