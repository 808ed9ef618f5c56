"""From numbers to rows of styled text and to pictures, free of side effects."""
