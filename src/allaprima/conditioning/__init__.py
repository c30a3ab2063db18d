"""What conditions an image beside noise: prompts, images to edit, control images."""
