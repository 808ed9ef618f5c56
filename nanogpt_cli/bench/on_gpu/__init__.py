"""The items of ``nanogpt bench gpu``, each carried out by a process of its own (``child.py``)."""
