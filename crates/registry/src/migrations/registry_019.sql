-- How many devices an authority's just-in-time template made: counted once, and not at each first contact.
ALTER TABLE authorities ADD COLUMN came INTEGER NOT NULL DEFAULT 0;
UPDATE authorities SET came = (SELECT count(*) FROM devices WHERE came_by = authorities.id);
DROP INDEX devices_by_template;
