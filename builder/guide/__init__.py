"""The built-in model `hob-guide`: its text, its training, its evaluation. The artefact lies in `model/`."""
