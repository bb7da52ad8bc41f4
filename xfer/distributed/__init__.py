"""One recipe trained on several devices of one machine."""
