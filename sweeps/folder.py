"""Which way of adapting a pretrained network works best on my own images?

    python -m sweeps.folder --data DIR

DIR holds one folder of images per class: DIR/<class>/*.jpg. An existing division into DIR/train/<class>,
DIR/val/<class> and DIR/test/<class> is respected.

Cost: 16 recipes of 6 epochs, MobileNetV2 at 128 px, 244 photos: five and a half minutes on 2 CPU cores.
Result: reports/folder-hymenoptera-75527a
"""

from sweeps.engine.cli import main
from sweeps.engine.plan import Plan

plan = Plan(experiment="folder", question="Which way of adapting a pretrained network serves these images best?")

if __name__ == "__main__":
    main(plan, __doc__)
