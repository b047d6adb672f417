"""Does a LoRA, or a fine-tuned model, copy the pictures that it was trained on.

A folder of training pictures is read as trainers have it (``folder``), near duplicates are found (``duplicates``), and
from how alike the generated pictures are to the training pictures and to held-out ones follow the copied pictures
(``copied``) and a test (``three_samples``). Hosts make the pictures; nothing here knows one.
"""
