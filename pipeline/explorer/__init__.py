"""The page in the browser: any picture, any location, any word, asked of a trained translator on this machine."""
