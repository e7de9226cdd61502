"""Images: opening them within bounds, turning them into pixels, and which of them can be used."""
