"""Floor 2: the model registry on disk: which versions exist, what they were made from, who is champion."""
