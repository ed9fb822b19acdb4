"""MAL: a class-agnostic ViT learns instance masks from boxes (Lan et al., CVPR 2023)."""
