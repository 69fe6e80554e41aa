"""What FedSparsify's brain-age results are to be compared with: pooled ridge regression, and no model at all.

All people's data in one place, which a federation never has; the same training and test people as the loader's.

    python examples/brain_age_baselines.py [FOLDER with fcon1000.csv]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import RidgeCV

from fedsparsify.data import load

train, test = load("brain-age", Path(sys.argv[1]) if len(sys.argv) > 1 else None)
assert test.groups is not None and train.groups is not None
ridge = RidgeCV(alphas=np.logspace(0, 6, 61)).fit(train.x, train.y[:, 0])  # leave-one-out cross-validation
errors = {
    f"ridge (alpha {ridge.alpha_:.0f})": np.abs(ridge.predict(test.x) - test.y[:, 0]) * train.y_scale,
    "median": np.abs(np.median(train.y) - test.y[:, 0]) * train.y_scale,
}

print(f"{len(train)} people to train on, {len(test)} to test on")
print(f"{'MAE in years':20}", *(f"{name:>18}" for name in errors))
print(f"{'all':20}", *(f"{error.mean():18.2f}" for error in errors.values()))
for group in np.unique(test.groups):
    name = test.group_names[group] + ("" if group in train.groups else " (unseen)")
    print(f"{name:20}", *(f"{error[test.groups == group].mean():18.2f}" for error in errors.values()))
