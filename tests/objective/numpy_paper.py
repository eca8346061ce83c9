"""Section 3 of the paper once more, in numpy and loops over classes, written from the formulas, not from the code."""

import numpy as np


def softmax(logits):
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    return exponent / exponent.sum(1, keepdims=True)


def label_confidence(logits, labels):
    probabilities, confidence = softmax(logits), np.zeros(labels.shape)
    for c in range(logits.shape[1]):
        confidence[labels == c] = probabilities[:, c][labels == c]
    return confidence


def entropy_confidence(logits):  # eq. 1
    probabilities = softmax(logits)
    return 1 + (probabilities * np.log(probabilities)).sum(1) / np.log(logits.shape[1])


def enhance(own, other):  # eq. 2
    return own * (1 + other) / 2


def label_weights(confidence, labels, alpha):  # eq. 3, one threshold
    known = labels != 255
    highest_first = np.sort(confidence[known])[::-1]
    threshold = highest_first[max(1, int(np.floor(alpha * known.sum()))) - 1]
    return np.where(known, np.minimum(1, confidence / threshold), 0)


def label_weights_per_class(confidence, labels, alpha):  # the authors' code
    weights = np.zeros(labels.shape)
    for c in set(np.unique(labels)) - {255}:
        own = labels == c
        k = int(np.floor(np.float32(own.sum()) * np.float32(alpha)))
        if k:
            threshold = np.sort(confidence[own])[::-1][k - 1]
            weights[own] = np.minimum(1, confidence[own] / threshold) if threshold > 0 else 1
    return weights


def cross_entropy(logits, labels, weights):
    known = labels != 255
    confidence = label_confidence(logits, labels)
    return (weights[known] * -np.log(confidence[known])).sum() / weights[known].sum()


def dice(logits, labels, weights):
    probabilities, losses = softmax(logits), []
    weights = np.where(labels == 255, 0, weights)
    for c in range(logits.shape[1]):
        p, t = probabilities[:, c], labels == c
        size = max((weights * p).sum() + (weights * t).sum(), 1e-7)
        losses.append(1 - 2 * (weights * p * t).sum() / size if t.any() else 0)
    return np.mean(losses)


def kl(student, teacher, weights):
    q, p = softmax(student), softmax(teacher)
    return (weights * (p * np.log(p / q)).sum(1)).sum() / weights.sum()


def objective(logits1, logits2, labels, alpha, gamma, valid, label_weights=label_weights):
    """The paper's total loss of two modalities."""
    labels = np.where(valid, labels, 255)
    logits = (logits1, logits2)
    label = [label_confidence(z, labels) for z in logits]
    entropy = [entropy_confidence(z) for z in logits]
    total = 0.0
    for own, other in ((0, 1), (1, 0)):
        weights = label_weights(enhance(label[own], label[other]), labels, alpha)
        total += cross_entropy(logits[own], labels, weights) + dice(logits[own], labels, weights)
        trust = ((1 - gamma) + gamma * enhance(entropy[other], entropy[own])) * valid
        total += kl(logits[own], logits[other], trust)
    return total
