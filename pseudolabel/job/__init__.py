"""The labelling job: plan, shards with receipts, merge; it may die at any moment and goes on."""
