"""Other libraries, each in an environment of its own. A module here imports its library, numpy, pandas, and the streams."""
