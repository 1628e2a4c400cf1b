-- What the warehouse must contain, computed from the shop's tables alone.

create view expected_customers as
select
    id,
    name,
    case when lower(btrim(email)) ~ '^[^@[:space:]]+@[^@[:space:]]+$' then lower(btrim(email)) end as email,
    repeat('*', greatest(length(regexp_replace(phone, '[^0-9]', '', 'g')) - 3, 0))
        || right(regexp_replace(phone, '[^0-9]', '', 'g'), 3) as phone,
    notes,
    tier,
    updated_at
from customers;

create view expected_order_view as
select
    orders.id,
    orders.status,
    orders.placed_at,
    orders.customer_id,
    customers.name as customer_name,
    customers.email as customer_email,
    customers.tier as customer_tier,
    count(order_lines.line)::integer as lines,
    coalesce(sum(order_lines.quantity), 0)::bigint as quantity,
    coalesce(sum(order_lines.quantity * order_lines.price), 0) as total
from orders
left join expected_customers as customers on customers.id = orders.customer_id
left join order_lines on order_lines.order_id = orders.id
group by orders.id, customers.id, customers.name, customers.email, customers.tier;
