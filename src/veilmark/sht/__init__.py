"""System one, Supervision-by-Hallucination-and-Transfer: networks, losses, training, inference."""
