-- Several LLM calls: the filter runs first, the projection is asked for the rows that pass it.
--   vllm-relational sql --file examples/queries/multi_llm.sql --model PATH_OR_NAME
SELECT review_id,
       LLM('What should the host of {name} improve? The guest wrote {comments}. The home: {description}',
           name, comments, description) AS advice
FROM 'examples/airbnb_reviews.parquet'
WHERE LLM_CLASSIFY('How does the guest feel? {comments} {name} {description}',
                   ['negative', 'positive'], comments, name, description) = 'positive'
ORDER BY review_id;
