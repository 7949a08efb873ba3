"""What a tied model is made of: parameters, layers, slots, views, ties, evidence, ledger."""
