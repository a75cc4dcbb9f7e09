"""Large-model mode: learn the chunks of chosen layers of one given model, sample new ones, keep the best checkpoint."""
