"""Read labelled images, pack them once and serve batches.

source.py        the interface: a `Source` lists labelled images that have not been read yet
layouts.py       detects the layout of a data set and reads it, with one module or package per layout:
                 image_folder, tables, stanford_cars, quickdraw, huggingface, torchvision_datasets
file_tree.py     every file below a folder, and why it cannot be used as an image
part_folders.py  the folders of the parts in that tree; part_names.py has their usual names
folder_notes.py  remarks on a folder: what was probably not meant
label_names.py   which labels are missing, and which look alike
uris.py          parses what `--data` accepts
images.py        reads one image as square pixels, with image_formats.py (formats and limits), deep_images.py (more than
                 8 bits per channel), pixel_rules.py (any type to 8-bit RGB) and value_ranges.py
inspection.py    what a data set holds; shortcuts.py finds properties of files that give the class away,
                 class_balance.py finds rare classes
pack.py          all images of a data set as one uint8 array on disk, named by its content
groups.py        images of one patient, camera, video, ...
split.py         training, validation and test part of a pack
loader.py        batches from a pack
"""
