"""How good a model is and what it costs: answers, scores with intervals, calibration, multiply-adds, time."""
