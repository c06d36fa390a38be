"""Small trained models, one folder for each architecture family, and the script that made them (``train.py``)."""
