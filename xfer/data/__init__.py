"""Read labelled images, pack them once and serve batches.

source.py      the interface: a `Source` lists labelled images that have not been read yet
layouts.py     detects the layout of a data set and reads it, with one module per layout:
               image_folder, csv_table, stanford_cars, quickdraw, huggingface, torchvision_datasets
file_tree.py   every file below a folder, and why it cannot be used as an image
part_names.py  usual names of training, validation and test parts
uris.py        parses what `--data` accepts
images.py      decodes one image, within limits
pack.py        all images of a data set as one uint8 array on disk, named by its content
split.py       training, validation and test part of a pack
loader.py      batches from a pack
"""
