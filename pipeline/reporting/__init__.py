"""Pages for people: charts, tables and pictures in one HTML file that asks for nothing."""
