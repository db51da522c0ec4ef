"""The trilemma measured: a DDGAN against its baselines under equal training time."""
