"""Trackio can be imported once this module is: it lies in a folder of its own (see the Makefile)."""

import os
import sys

FOLDER = os.path.join(sys.prefix, "trackio")
if FOLDER not in sys.path:
    sys.path.append(FOLDER)
