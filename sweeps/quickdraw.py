"""Which way of adapting an ImageNet network tells hand-drawn sketches apart best?

    python -m sweeps.quickdraw --data DIR

DIR holds classes of QuickDraw (Ha and Eck 2017) as Google published them, one file per class: bitmaps as
DIR/<class>.npy, or simplified strokes as DIR/<class>.ndjson. Sketches are plentiful and unlike photos, so this asks
what pretraining on photos is still worth, and whether to clip gradients or freeze layers to preserve it.

Cost: 6 recipes of 3 epochs on 100 drawings of each of 10 classes, evaluated on 6,000, MobileNetV2 at 64 px:
seven minutes on 2 CPU cores, most of it for evaluation under noise, which has been limited to 500 images since.
"""

from sweeps.engine.cli import main
from sweeps.engine.plan import Plan

plan = Plan(
    experiment="quickdraw",
    question="Which way of adapting an ImageNet network tells hand-drawn sketches apart best?",
    source="quickdraw",
    image_size=64,
)

if __name__ == "__main__":
    main(plan, __doc__)
