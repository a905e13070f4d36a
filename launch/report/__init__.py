"""The report: one HTML file about runs, made from the files of their folders alone; and the board, the same page kept up to date."""
