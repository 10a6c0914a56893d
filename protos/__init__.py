"""Floor 0: the words on the wire, and the code made from them by `protos/generate.py`."""
