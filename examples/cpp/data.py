"""Writes scikit-learn's handwritten digits to a file for the examples: python data.py FILE.

The file, safetensors, has ``images``, float32 of shape (1797, 64) in [0, 1], and ``labels``, int32
of shape (1797,).
"""

import sys

import mlx.core as mx
import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
images = (digits.data / 16).astype(np.float32)
labels = digits.target.astype(np.int32)
mx.save_safetensors(sys.argv[1], {"images": mx.array(images), "labels": mx.array(labels)})
