"""The key-value cache: its arrays, its rows, and how it is split over devices."""
