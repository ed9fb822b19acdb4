"""Mask2Former (Cheng et al., CVPR 2022) of the transformers library, trained like any model."""
