"""Training of students that answer for places, from pictures, sensor series and texts."""
