-- The target: customers as analysts may see them, and one row for each order.

create table customers (
    id bigint primary key,
    name text not null,
    email text,
    phone text,
    notes text,
    tier text,
    updated_at timestamptz not null
);

create table order_view (
    id bigint primary key,
    status text not null,
    placed_at timestamptz not null,
    customer_id bigint,
    customer_name text,
    customer_email text,
    customer_tier text,
    lines integer not null,
    quantity bigint not null,
    total numeric not null
);
