"""Everything that shows: statistics over records, tables, figures. Nothing here can change a record."""
