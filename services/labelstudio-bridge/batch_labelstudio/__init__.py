"""The Label Studio bridge: what people correct becomes validation, training and better models."""
